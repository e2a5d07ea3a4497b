"""What the server that ranks are forked off has done before: imports, and the model."""

import torch
from forks import pocket

torch.set_num_threads(1)
pocket()
