# k-NN on ImageNet-1K: `knn` and `data_preprocessor` of the pre-training's data, so that an extracted network is scored
# exactly as the subnets inside the supernet are. The rest of what is inherited is not used.
_base_ = ['../../_base_/default_runtime.py', '../../_base_/datasets/in1k_multicrop.py']

model = dict(type='ImageClassifier')
