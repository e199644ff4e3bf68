"""Stores objects until it is killed, and says what was acknowledged: python killed.py ROOT SEED FIRST."""

import json
import random
import sys
import threading
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

from store_support import CHUNK, body, header, open_store, put, send

root, seed, first = sys.argv[1:]
store = open_store(Path(root))
print(json.dumps("open"), flush=True)


def work(lane: int) -> None:
    number = int(first)
    while True:
        name = f"{seed} {lane} {number}"
        number += 1
        dice = random.Random(name)
        large = dice.random() < 0.05
        data = body(dice.randrange(CHUNK, 3 * CHUNK) if large else dice.randrange(30_000), name)
        stored = (send if large else put)(store, header(dice.randrange(4), name), data, name)
        ref = stored.ref
        row = store.row(ref)
        # One write is one line, whatever the other threads write.
        line = json.dumps(
            [[ref.study_hash, ref.generation, ref.sequence], row.header.sop_instance_uid, row.sha256.hex()]
        )
        sys.stdout.write(line + "\n")
        sys.stdout.flush()


threads = [threading.Thread(target=work, args=(lane,)) for lane in range(3)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
