"""What weights and caches are rounded to fit where the user gives no text of their own: prose, code, talk, tables.

The prose is in the public domain: the openings of *Pride and Prejudice* (Jane Austen, 1813), *Moby-Dick* (Herman
Melville, 1851), *A Tale of Two Cities* (Charles Dickens, 1859) and *Alice's Adventures in Wonderland* (Lewis Carroll,
1865). The rest was written for this. None of it is in evaluation.py: nothing is measured on what it was fitted to.
"""

from __future__ import annotations

from pathlib import Path

from ..errors import OptionError
from ..interfaces import Tokens
from .tokenizer import Tokenizer

PROSE = (
    """\
It is a truth universally acknowledged, that a single man in possession of a good fortune, must be in want of a wife.

However little known the feelings or views of such a man may be on his first entering a neighbourhood, this truth is \
so well fixed in the minds of the surrounding families, that he is considered the rightful property of some one or \
other of their daughters.

"My dear Mr. Bennet," said his lady to him one day, "have you heard that Netherfield Park is let at last?"

Mr. Bennet replied that he had not.

"But it is," returned she; "for Mrs. Long has just been here, and she told me all about it."

Mr. Bennet made no answer.

"Do you not want to know who has taken it?" cried his wife impatiently.

"You want to tell me, and I have no objection to hearing it."

This was invitation enough.
""",
    """\
Call me Ishmael. Some years ago—never mind how long precisely—having little or no money in my purse, and nothing \
particular to interest me on shore, I thought I would sail about a little and see the watery part of the world. It \
is a way I have of driving off the spleen and regulating the circulation. Whenever I find myself growing grim about \
the mouth; whenever it is a damp, drizzly November in my soul; whenever I find myself involuntarily pausing before \
coffin warehouses, and bringing up the rear of every funeral I meet; and especially whenever my hypos get such an \
upper hand of me, that it requires a strong moral principle to prevent me from deliberately stepping into the \
street, and methodically knocking people's hats off—then, I account it high time to get to sea as soon as I can.
""",
    """\
It was the best of times, it was the worst of times, it was the age of wisdom, it was the age of foolishness, it was \
the epoch of belief, it was the epoch of incredulity, it was the season of Light, it was the season of Darkness, it \
was the spring of hope, it was the winter of despair, we had everything before us, we had nothing before us, we were \
all going direct to Heaven, we were all going direct the other way—in short, the period was so far like the present \
period, that some of its noisiest authorities insisted on its being received, for good or for evil, in the \
superlative degree of comparison only.
""",
    """\
Alice was beginning to get very tired of sitting by her sister on the bank, and of having nothing to do: once or \
twice she had peeped into the book her sister was reading, but it had no pictures or conversations in it, "and what \
is the use of a book," thought Alice "without pictures or conversations?"

So she was considering in her own mind (as well as she could, for the hot day made her feel very sleepy and stupid), \
whether the pleasure of making a daisy-chain would be worth the trouble of getting up and picking the daisies, when \
suddenly a White Rabbit with pink eyes ran close by her.

There was nothing so very remarkable in that; nor did Alice think it so very much out of the way to hear the Rabbit \
say to itself, "Oh dear! Oh dear! I shall be late!"
""",
)

CODE = (
    '''\
import csv
import sys
from collections import defaultdict


def read_sales(path):
    """Yield (city, month, amount) for every row of a file with a header line."""
    with open(path, newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            yield row["city"], int(row["month"]), float(row["amount"])


def totals(rows):
    by_city = defaultdict(float)
    for city, _, amount in rows:
        by_city[city] += amount
    return dict(sorted(by_city.items(), key=lambda item: -item[1]))


def main(argv):
    if len(argv) != 2:
        print(f"usage: {argv[0]} FILE", file=sys.stderr)
        return 2
    for city, amount in totals(read_sales(argv[1])).items():
        print(f"{city:<20} {amount:>10.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
''',
    """\
class Queue {
  constructor(limit = 100) {
    this.items = [];
    this.limit = limit;
  }

  push(item) {
    if (this.items.length >= this.limit) {
      throw new Error(`the queue holds ${this.limit} items and is full`);
    }
    this.items.push(item);
    return this.items.length;
  }

  async drain(handle) {
    while (this.items.length > 0) {
      await handle(this.items.shift());
    }
  }
}

#include <stdio.h>

int gcd(int a, int b) {
    while (b != 0) {
        int rest = a % b;
        a = b;
        b = rest;
    }
    return a;
}

int main(void) {
    printf("%d\\n", gcd(1071, 462)); /* 21 */
    return 0;
}

SELECT customer.name, COUNT(*) AS orders, SUM(item.price * item.quantity) AS total
FROM customer JOIN item ON item.customer_id = customer.id
WHERE item.ordered >= '2024-01-01' GROUP BY customer.name HAVING COUNT(*) > 3 ORDER BY total DESC LIMIT 10;
""",
)

TALK = (
    """\
User: Can you explain what a leap year is?
Assistant: A leap year has 366 days instead of 365; the extra day is the 29th of February. The Earth needs about \
365.2422 days to go once around the Sun, so every fourth year gets a day more. Years that can be divided by 100 are \
left out, unless they can be divided by 400 as well: 1900 was not a leap year, 2000 was.

User: And how many days is it from the 27th of February to the 2nd of March 2024?
Assistant: 2024 is a leap year, so February has 29 days. From the 27th to the 29th are 2 days, and from there to the \
2nd of March are 2 more: 4 days.

User: Write a short, friendly note to my neighbour. Their parcel is with me.
Assistant: Hello! A parcel for you was delivered to me this morning. I am at home until six, and all day tomorrow; \
just ring the bell. Best wishes, your neighbour from the second floor.
""",
    """\
User: Give me a simple recipe for pancakes.
Assistant: You need:
1. 200 g of flour
2. 2 eggs
3. 300 ml of milk
4. a pinch of salt and a little butter

Mix flour, salt and eggs, add the milk slowly, and let the batter rest for twenty minutes. Melt some butter in a \
pan, pour in a thin layer, and turn it over when the edges come loose.

User: Wie sagt man das auf Deutsch: "The train is late again"?
Assistant: "Der Zug hat schon wieder Verspätung."

User: Et en français?
Assistant: « Le train est encore en retard. »

User: Summarise this in JSON: Anna, 34, lives in Porto and speaks Portuguese and English.
Assistant: {"name": "Anna", "age": 34, "city": "Porto", "languages": ["Portuguese", "English"]}
""",
    """\
| City | Inhabitants | Area in km2 | Density |
|---|---|---|---|
| Oldtown | 120,400 | 86.2 | 1,397 |
| Newport | 58,930 | 41.7 | 1,413 |
| Hillside | 7,215 | 33.0 | 219 |

## What changed in version 2.1

- **Faster start**: files are read when they are needed, not before.
- Dates such as 2024-03-15 and times such as 17:45 are recognised in every language.
- The limit of 1,000 entries is gone; see https://example.org/limits for the new one.

If 3x + 7 = 22, then 3x = 15 and x = 5. The circle has a radius of 2.5 cm, so its area is about 19.63 cm2.
""",
)

TEXT = "\n".join((*PROSE, *CODE, *TALK))

_SHORTEST = 16  # tokens: what stands at the end of a text and is shorter teaches nothing


def calibration_samples(tokenizer: Tokenizer, text: str | Path | None = None, *, length: int = 256) -> list[Tokens]:
    """A text as pieces of at most `length` tokens. text: itself, or a file of it in UTF-8; None takes the one above.

    Raises OptionError for a text that cannot be read or is too short to be looked at.
    """
    tokens = tokenizer.encode(TEXT if text is None else text if isinstance(text, str) else _read(text))
    pieces = [tokens[at : at + length] for at in range(0, len(tokens), length)]
    samples = [piece for piece in pieces if len(piece) >= min(_SHORTEST, length)]
    if not samples:
        raise OptionError(
            f"the calibration text has {len(tokens)} tokens, which is too little; give some thousand, or leave it out."
        )
    return samples


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise OptionError(f"the calibration text {path} cannot be read as UTF-8: {error}.") from error
