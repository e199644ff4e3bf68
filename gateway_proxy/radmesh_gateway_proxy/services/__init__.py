"""The DIMSE services that stations ask for, beside C-STORE and C-ECHO (PS3.4)."""
