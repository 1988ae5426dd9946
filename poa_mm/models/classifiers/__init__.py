from .subnet_classifier import SubnetClassifier

__all__ = ['SubnetClassifier']
