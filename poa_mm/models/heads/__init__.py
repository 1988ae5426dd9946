from .multi_prototype_head import MultiPrototypeHead

__all__ = ['MultiPrototypeHead']
