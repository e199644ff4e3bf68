"""The compiled hot path of radmesh: DICOM upper layer, header scan, bulk codec, CRC-32C."""
