"""Names for containers that were given none: an adjective and a surname.

The surnames are of people who moved cargo, built the boats or found the ways. Our own lists.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from scow.native.errors import ScowError

# ruff: noqa: SIM905
ADJECTIVES = (
    "able agile amber ample azure balmy bold brave breezy bright brisk calm candid civil clear "
    "clever copper coral crisp daring deft dapper eager early easy fair faithful fleet floating "
    "fond frank fresh frosty gentle gifted glad golden grand green handy happy hardy hearty "
    "honest humble jolly keen kind lively loyal lucid lucky mellow merry mighty misty modest neat "
    "nimble noble patient placid plain plucky polite prime proud quick quiet ready robust rosy "
    "sandy serene sharp silver smart snug solid sound spry steady stout strong sunny sure swift "
    "tidal tidy tranquil true trusty upbeat valiant vivid warm wise witty young zesty"
).split()

SURNAMES = (
    "amundsen anson baffin barents beaufort bering blackburn bligh bougainville bowditch brunel "
    "cabot cartier chichester cook cousteau dampier dias drake earhart erikson flinders fram "
    "franklin frobisher fulton gama halley harrison hawkins henson hopper hudson humboldt ibsen "
    "joshua kendall kingsley krusenstern laperouse lovelace maclean magellan malaspina marconi "
    "maskelyne maury mclean mercator moitessier nansen nelson newcomen nordenskjold ortelius "
    "parry parsons peary piccard plimsoll polo ptolemy quiros raleigh rasmussen ross rushworth "
    "savery scott selkirk semmelhack shackleton slocum smeaton somerville stevenson symington "
    "tasman thorne tilman torres tristan vancouver vespucci wallis watt weddell whitby wilkes "
    "worsley zheng"
).split()


def random_name(attempt: int = 0) -> str:
    """A name such as `steady_slocum`; later attempts get a digit, for hosts with very many."""
    number = int.from_bytes(os.urandom(8), "little")
    number, adjective = divmod(number, len(ADJECTIVES))
    number, surname = divmod(number, len(SURNAMES))
    name = f"{ADJECTIVES[adjective]}_{SURNAMES[surname]}"
    return f"{name}{number % 10}" if attempt > 4 else name


def free_name(is_taken: Callable[[str], bool]) -> str:
    """A random name that nobody has now; claiming it is another matter."""
    for attempt in range(16):
        name = random_name(attempt)
        if not is_taken(name):
            return name
    raise ScowError("cannot find a free container name", hint="give one with --name")
