import numpy as np
import numpy.typing as npt

class CodestreamError(ValueError): ...

def decode(
    codestream: bytes | bytearray | memoryview,
    reduce: int,
    max_samples: int,
    into: npt.NDArray[np.generic] | None = None,
) -> npt.NDArray[np.generic]: ...
def use_path(name: str) -> str: ...
