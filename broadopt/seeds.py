"""Every random draw of a run comes from a generator seeded by the run's seed and by what the draw is for: no draw
depends on an earlier one.
"""

import hashlib


def derive(seed: int, *purpose: object) -> int:
    """A seed in [0, 2^63) for `purpose`, e.g. derive(1, "noise", step); a hash, so neighbouring seeds share nothing."""
    digest = hashlib.sha256("/".join(map(str, (seed, *purpose))).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
