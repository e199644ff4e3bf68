"""HL7 version 2: a tolerant reader, MLLP, and what radmesh itself says (shared; knows no store and no gRPC)."""
