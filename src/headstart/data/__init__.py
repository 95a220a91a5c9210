"""Where episodes come from: every factory returns a `headstart.types.Tasks`."""

from headstart.data.curves.curves import curves as curves
from headstart.data.curves.gp_curves import gp_curves as gp_curves
from headstart.data.curves.plateaus import plateaus as plateaus
from headstart.data.curves.sinusoid import sinusoid as sinusoid
from headstart.data.images.fewshot import few_shot as few_shot
from headstart.data.images.fewshot import image_store as image_store
from headstart.data.images.folder import folder as folder
from headstart.data.images.icons import icons as icons
from headstart.data.images.omniglot import omniglot as omniglot
from headstart.data.rows import Rows as Rows
from headstart.data.rows import row_tasks as row_tasks
from headstart.data.tables import table as table
