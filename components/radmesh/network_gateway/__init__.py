"""The Network Gateway: admission by the header alone, the spool for when no archive answers, and the rejects store."""
