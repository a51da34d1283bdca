"""Parts of export.py that stand alone: the graph, its formats, the comparison with the model."""
