"""The values of an event file, by step: curves, pictures and texts, as TensorBoard reads them."""

from __future__ import annotations

import functools
import struct
from collections import defaultdict
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import (
    DATA_CLASS_BLOB_SEQUENCE,
    DATA_CLASS_SCALAR,
    DATA_CLASS_TENSOR,
    Summary,
    SummaryMetadata,
)
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto

from bpexp.dashboard import heatmap, tags

_FLOAT = struct.Struct("<f").pack
_SUMMARY = bytes([Event.SUMMARY_FIELD_NUMBER << 3 | 2])
"""What stands before the length of an event's summary, its last field: the number of the field, and that it has one."""

LARGEST = float(np.finfo(np.float32).max)
"""TensorBoard's values are float32; what is larger is not finite there."""

_KINDS = {
    "simple_value": ("scalars", DATA_CLASS_SCALAR),
    "image": ("images", DATA_CLASS_BLOB_SEQUENCE),
}


class Events:
    """Serialized values by step; the first value of a tag carries what the tag means."""

    def __init__(self) -> None:
        self._values: dict[int, list[bytes]] = defaultdict(list)
        self._described: set[str] = set()

    def scalars(self, tag: str, steps: Iterable[int], values: Iterable[float]) -> None:
        """Add a curve; what is not finite is left out."""
        start, described, values_of = _scalar_start(tag), tag in self._described, self._values
        for step, value in zip(steps, values, strict=True):
            if not abs(value) <= LARGEST:
                continue
            if described:
                values_of[step].append(start + _FLOAT(value))
            else:
                self.add(step, Summary.Value(tag=tag, simple_value=value))
                described = True

    def image(self, tag: str, step: int, png: bytes) -> None:
        """Add a picture."""
        image = Summary.Image(height=heatmap.HEIGHT, width=heatmap.WIDTH, colorspace=3, encoded_image_string=png)
        self.add(step, Summary.Value(tag=tag, image=image))

    def add(self, step: int, value: Summary.Value) -> None:
        """Add any value; the first of a scalar's or a picture's tag gets its description."""
        kind = _KINDS.get(value.WhichOneof("value"))
        if kind is not None and value.tag not in self._described:
            plugin, data_class = kind
            value.metadata.summary_description = tags.describe(value.tag)
            # TensorBoard's fast loader drops the description of a value that does not name its plugin.
            value.metadata.plugin_data.plugin_name = plugin
            value.metadata.data_class = data_class
            self._described.add(value.tag)
        self._values[step].append(Summary(value=[value]).SerializeToString())

    def records(self, wall_time: float) -> list[bytes]:
        """Return the serialized events, the file's own first one included."""
        found = [Event(wall_time=wall_time, file_version="brain.Event:2").SerializeToString()]
        for step in sorted(self._values):
            start = Event(wall_time=wall_time, step=step).SerializeToString()
            summary = b"".join(self._values[step])
            found.append(b"".join((start, _SUMMARY, _varint(len(summary)), summary)))
        return found


def _varint(number: int) -> bytes:
    """Return a number as protocol buffers hold it: seven bits a byte, the lowest first."""
    parts = []
    while number > 127:
        parts.append(number & 127 | 128)
        number >>= 7
    return bytes([*parts, number])


@functools.cache
def _scalar_start(tag: str) -> bytes:
    """Return a serialized scalar without the four bytes of its value, which are the last: a tenth of the work."""
    serialized: bytes = Summary(value=[Summary.Value(tag=tag, simple_value=0)]).SerializeToString()
    return serialized[:-4]


def log10(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the log10 of sizes, the floor where one is smaller."""
    with np.errstate(divide="ignore"):
        return np.maximum(np.log10(np.abs(values)), tags.FLOOR)


def text(tag: str, text: str) -> Summary.Value:
    """Return Markdown for the Text page."""
    return string_value(tag, "text", text.encode())


def string_value(tag: str, plugin: str, content: bytes) -> Summary.Value:
    """Return bytes for a plugin of TensorBoard."""
    metadata = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name=plugin), data_class=DATA_CLASS_TENSOR)
    tensor = TensorProto(dtype="DT_STRING", string_val=[content], tensor_shape=TensorShapeProto())
    return Summary.Value(tag=tag, tensor=tensor, metadata=metadata)
