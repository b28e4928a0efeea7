from setuptools import Extension, setup

setup(ext_modules=[Extension("softmax_regression", ["softmax_regression.pyx"])])
