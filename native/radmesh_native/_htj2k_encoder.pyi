from typing import overload

import numpy as np
import numpy.typing as npt
from typing_extensions import Buffer

@overload
def encode(
    frame: npt.NDArray[np.generic], bits: int, levels: int, out: None = None
) -> tuple[bytes, tuple[int, ...]] | None: ...
@overload
def encode(
    frame: npt.NDArray[np.generic], bits: int, levels: int, out: Buffer
) -> tuple[None, tuple[int, ...]] | None: ...
def path() -> str: ...
def use_path(name: str) -> str: ...
