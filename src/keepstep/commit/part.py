"""A part of a checkpoint's bytes: what one run of a verification that is spread over days reads."""

import re
from dataclasses import dataclass
from datetime import date
from zlib import crc32

from keepstep.commit.blocks import FileBlocks
from keepstep.errors import ConfigError

_FORM = re.compile(r"(?P<number>rotate|\d+)/(?P<parts>\d+)")


@dataclass(frozen=True, slots=True)
class Part:
    """One of so many parts. Together they are all blocks, each of them once."""

    number: int
    """From 0 on."""
    parts: int

    def __str__(self) -> str:
        return f"{self.number + 1}/{self.parts}"

    def blocks_of(self, blocks: FileBlocks) -> range:
        """The blocks of a file that belong to this part: consecutive ones.

        Which of the file's parts is the first depends on its name: small files would else all be
        read on the same day.
        """
        number = (self.number + crc32(blocks.file.encode())) % self.parts
        count = len(blocks.blocks)
        return range(count * number // self.parts, count * (number + 1) // self.parts)


WHOLE = Part(0, 1)


def parse_part(text: str, today: date) -> Part:
    """``all``, ``3/7``, or ``rotate/7`` for a part that depends on the date.

    *Raises:* ConfigError.
    """
    if text == "all":
        return WHOLE
    match = _FORM.fullmatch(text)
    parts = int(match["parts"]) if match else 0
    if match and parts and match["number"] == "rotate":
        return Part(part_of_day(today, parts), parts)
    if match and 1 <= (number := int(match["number"] if parts else 0)) <= parts:
        return Part(number - 1, parts)
    raise ConfigError(f"{text!r} is no part of the data: write all, 3/7, or rotate/7")


def part_of_day(day: date, parts: int) -> int:
    """Which part's turn it is. Runs that are daily or weekly come to all within two rounds.

    Hence the shift by one after each round: else one of seven parts would have all the Sundays.
    """
    days = day.toordinal()
    return (days + days // parts) % parts
