"""Datasets as splits of labelled images in [0, 1], stratified sampling and augmentation."""

from consensus_cli.data.datasets import DATASETS, check, check_image_size, load
from consensus_cli.data.source import ImageData
from consensus_cli.data.split import Augmentation, Split

__all__ = ["DATASETS", "Augmentation", "ImageData", "Split", "check", "check_image_size", "load"]
