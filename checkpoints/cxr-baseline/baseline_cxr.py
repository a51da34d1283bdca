"""The baseline: a small convolutional network, by default of four blocks."""

from torch import nn

from .configuration_cxr import CxrBaselineConfig


class BaselineCnn(nn.Module):
    """Blocks of 3x3 convolution, batch normalisation, ReLU and 2x2 maximum pooling."""

    def __init__(self, config: CxrBaselineConfig):
        super().__init__()
        channels = config.num_channels
        self.features = nn.Sequential()
        for width in config.hidden_sizes:
            self.features.extend(
                [
                    nn.Conv2d(channels, width, 3, padding=1, bias=False),
                    nn.BatchNorm2d(width),
                    nn.ReLU(inplace=True),
                    nn.MaxPool2d(2),
                ]
            )
            channels = width
        self.num_features = channels
        self.dropout = nn.Dropout(config.dropout)
        self.classifier = nn.Linear(channels, config.num_labels)

    def forward_features(self, pixel_values):
        return self.features(pixel_values)

    def forward_head(self, features):
        return self.classifier(self.dropout(features.mean((2, 3))))

    def get_classifier(self):
        return self.classifier

    def forward(self, pixel_values):
        return self.forward_head(self.forward_features(pixel_values))
