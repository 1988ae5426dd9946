"""How good every subnet is, on frozen features: k-nearest neighbours, and accuracy of linear probes."""

from .backbone import load_backbone
from .features import extract_features, feature_batches
from .knn import NearestNeighbours, evaluate_knn, knn_accuracy
from .report import print_table, save_report
from .sweep_accuracy import SweepAccuracy

__all__ = [
    'NearestNeighbours',
    'SweepAccuracy',
    'evaluate_knn',
    'extract_features',
    'feature_batches',
    'knn_accuracy',
    'load_backbone',
    'print_table',
    'save_report',
]
