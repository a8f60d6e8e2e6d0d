"""CVAT among the formats of data sets."""

from samserve.datasets.cvat.reading import read, recognises
from samserve.datasets.cvat.writing import write_file
from samserve.datasets.formats import Format

FORMAT = Format(
    name="cvat",
    title="an export of CVAT as 'CVAT for images 1.1'",
    recognises=recognises,
    read=read,
    write=write_file,
)
