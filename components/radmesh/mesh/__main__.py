"""`python -m radmesh.mesh` is `radmesh`."""

import sys

from radmesh.mesh.cli import main

sys.exit(main())
