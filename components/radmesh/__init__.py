"""radmesh: a PACS cluster as a mesh of gRPC components."""

__version__ = "0.1.0"
