"""Errors while files are written: the disk's become one sentence, all others stay what they are."""

import pytest
from safetensors import SafetensorError

from training.checkpoints import write_errors


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device"),
        SafetensorError("I/O error: No space left on device"),
        # What torch.save says on a full disk.
        RuntimeError("[enforce fail at inline_container.cc:671] . unexpected pos 640 vs 598"),
        RuntimeError("basic_ios::clear: iostream error"),
    ],
)
def test_a_disk_that_cannot_be_written_is_one_sentence(error):
    with pytest.raises(OSError, match=r"^the results in x could not be written \(.*\)\.$"):
        with write_errors("the results in x"):
            raise error


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("mat1 and mat2 shapes cannot be multiplied, see the profile"),
        RuntimeError("a tensor that is overwritten in place"),
        ValueError("a threshold needs both kinds of images."),
    ],
)
def test_other_errors_are_not_blamed_on_the_disk(error):
    with pytest.raises(type(error)) as caught:
        with write_errors("the results in x"):
            raise error
    assert caught.value is error
