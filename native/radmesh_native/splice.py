"""Where elements of a data set are, so that their bytes can be replaced while all others are copied.

`locate(data, tags, implicit=…, big_endian=…)` walks the elements of the beginning of a data set, and stops at the first
one behind the last of `tags`. It returns

    (state, offset, {tag: (start, value, end, undefined)})

`state`: FOUND: an element behind all of them is at `offset`; ENDED: `data` ends there, between two elements; CUT: it
ends within the element that begins there. Of a tag that is there, `start` is where its header is, `value` where its
value is, `end` where the next element is, and `undefined` whether its length is (the delimiter lies before `end`). Of
one that is not there the three are the offset where it belongs. After CUT the places of tags behind `offset` say
nothing.

Raises ValueError where bytes cannot be replaced without knowing more: an element without a VR, elements out of order,
sequences nested more than 64 deep. Nothing recurses, and no length is believed before it is compared with what is
there.
"""

from radmesh_native._splice import CUT, ENDED, FOUND, locate

__all__ = ["CUT", "ENDED", "FOUND", "locate"]
