"""Label Studio among the formats of data sets."""

from samserve.datasets.formats import Format
from samserve.datasets.label_studio.reading import read, recognises
from samserve.datasets.label_studio.writing import write_folder

FORMAT = Format(
    name="label-studio",
    title="tasks or an export of Label Studio",
    recognises=recognises,
    read=read,
    write=write_folder,
    folder=True,
)
