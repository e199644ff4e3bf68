"""HTJ2K by our decoder for pydicom: a plugin of pylibjpeg (entry points, pyproject.toml) that is there once radmesh is.

pydicom looks for no plugins itself, but takes pylibjpeg's; of several for a transfer syntax it asks the first by the
name of their module alone, and pylibjpeg-openjpeg's is `openjpeg`. Hence a module of its own, with an underscore. What
ours refuses, OpenJPEG gets. Importing this costs nothing: pydicom does so wherever it is imported.
"""

from typing import Any


def decode_pixel_data(src: bytes, version: int = 1, **options: Any) -> Any:
    """Return a frame as pylibjpeg-openjpeg does: little endian, colour by pixel, RGB where there is a colour transform.

    Args:
        src: a code stream of 1.2.840.10008.1.2.4.201, .202 or .203.
        version: of pylibjpeg's plugins; 2: bytes are returned, of 8 bits a sample where these do, else of 16.
        options: what pydicom says of the data set.

    Raises:
        RuntimeError: neither decodes it.
    """
    if version == 2:
        from radmesh_native import htj2k  # noqa: PLC0415

        # A frame that is larger than its data set says is not made room for.
        size = options.get("rows", 0) * options.get("columns", 0) * options.get("samples_per_pixel", 1)
        try:
            frame = htj2k.decode(src, max_samples=size or htj2k.MAX_SAMPLES)
            return bytearray(frame.astype(frame.dtype.newbyteorder("<"), copy=False).data)
        except htj2k.CodestreamError:
            pass
    import openjpeg  # noqa: PLC0415

    return openjpeg.decode_pixel_data(src, version=version, **options)
