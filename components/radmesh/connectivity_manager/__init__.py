"""The Connectivity Manager: speaks HL7 with the HIS/RIS of one or more domains."""
