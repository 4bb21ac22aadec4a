"""What workers and the state process say to each other: MessagePack, framed by `link.py`."""

import msgspec

MOST_BYTES = 16 * 1024 * 1024


class Batch(msgspec.Struct, array_like=True, frozen=True):
    """What a worker has counted in one turn of its loop, summed up."""

    number: int  # its batches, from 1
    rows: list[int]  # keys that it wants to hear of from now on
    adds: list[tuple[int, int, int]]  # key, cell, n
    bumps: list[tuple[int, int, int, int, int]]  # key, first, cells, stamp, n


class News(msgspec.Struct, array_like=True, frozen=True):
    """Rows as they are after the worker's batch `done`."""

    done: int
    rows: list[tuple[int, list[int]]]  # key, its cells


_encode = msgspec.msgpack.encode
decode_batch = msgspec.msgpack.Decoder(Batch).decode
decode_news = msgspec.msgpack.Decoder(News).decode


def encode_batch(batch: Batch) -> bytes:
    return _encode(batch)


def encode_news(done: int, rows: list[tuple[int, list[int]]]) -> bytes:
    return _encode(News(done, rows))
