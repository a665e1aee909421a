from .common.data import dataloader
from .common.model import model
from .common.training import lr_multiplier, optimizer, train
