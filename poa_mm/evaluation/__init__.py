"""How good every subnet is: weighted k-nearest neighbours on frozen features."""

from .features import extract_features, feature_batches
from .knn import NearestNeighbours, evaluate_knn, knn_accuracy
from .report import print_table, save_report

__all__ = [
    'NearestNeighbours',
    'evaluate_knn',
    'extract_features',
    'feature_batches',
    'knn_accuracy',
    'print_table',
    'save_report',
]
