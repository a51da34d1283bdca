"""Makes JPEG files for tests."""

import functools
import io

from PIL import Image

SCAN = b"\xff\xda"
MOST_SCANS = 100  # of a file that is read


@functools.lru_cache
def scans(side):
    """A progressive JPEG of black, 4 kB a million pixels, of as many scans as one may have.

    Each is a pass over all pixels: a million take about a ninth of a second.
    """
    file = io.BytesIO()
    Image.new("L", (side, side)).save(file, "JPEG", progressive=True)
    content = file.getvalue()
    last = content.rindex(SCAN)
    again = content[last:-2] * (MOST_SCANS - content.count(SCAN))
    return content[:-2] + again + content[-2:]
