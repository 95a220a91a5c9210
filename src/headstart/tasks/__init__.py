"""Where episodes come from: every factory returns a `headstart.types.Tasks`."""

from headstart.tasks.curves import curves as curves
from headstart.tasks.fewshot import few_shot as few_shot
from headstart.tasks.fewshot import image_store as image_store
from headstart.tasks.folder import folder as folder
from headstart.tasks.gp_curves import gp_curves as gp_curves
from headstart.tasks.icons import icons as icons
from headstart.tasks.omniglot import omniglot as omniglot
from headstart.tasks.plateaus import plateaus as plateaus
from headstart.tasks.rows import Rows as Rows
from headstart.tasks.rows import row_tasks as row_tasks
from headstart.tasks.sinusoid import sinusoid as sinusoid
from headstart.tasks.table import table as table
