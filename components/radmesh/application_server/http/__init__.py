"""The HTTP door of the Application Server: sessions, the JSON API, events; pages and DICOMweb are mounted on it."""
