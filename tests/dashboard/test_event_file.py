import numpy as np
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import crc32c, masked_crc32c

from bpexp.dashboard import event_file


def test_checksums_are_those_of_tensorboard():
    generator = np.random.default_rng(0)
    records = [generator.bytes(size) for size in (4, 5, 255, 256, 257, 512, 513, 5000)]
    assert event_file.checksums(records) == [crc32c(record) for record in records]
    framed = event_file.frame(records[:1])
    length, record = framed[:8], framed[12:16]
    assert int.from_bytes(framed[8:12], "little") == masked_crc32c(length)
    assert int.from_bytes(framed[16:], "little") == masked_crc32c(record)
