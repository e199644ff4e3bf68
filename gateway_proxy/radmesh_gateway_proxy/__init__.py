"""The gateway proxy: the only component that speaks DICOM with the world outside."""
