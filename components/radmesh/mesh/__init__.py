"""The mesh: the only place that knows every component; starts them, watches over them, and is the `radmesh` command."""
