"""The DICOM vocabulary that components share: UIDs, the queryable header, admission keys, Part 10 files, stations."""
