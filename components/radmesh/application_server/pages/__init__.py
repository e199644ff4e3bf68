"""The pages: what a browser sees of a cluster. No build step, and nothing from elsewhere."""

from radmesh.application_server.pages.files import routes

__all__ = ["routes"]
