"""Every error of onnxq. Each says what is wrong, with the file, node or tensor and the value, then what to do.

OnnxqError                 the command line prints it in one line and exits with code 2
├── ModelError             the file is not a model that can be read, or the graph breaks a rule of ONNX
│   └── UnsupportedModel   a valid model that the installed runtime cannot run
├── DataError              calibration or validation data does not fit the model
├── RecipeError            a recipe, plan or option that makes no sense, or an unknown key
├── ProviderError          an execution provider that is asked for and absent
├── OutputError            the result cannot be written where it should go
└── CrashError             the process that did the work was ended from below
"""

from __future__ import annotations


class OnnxqError(Exception):
    """Base of all errors that a user can mend."""


class ModelError(OnnxqError):
    """The file is not a readable ONNX model, or its graph breaks a rule of ONNX."""


class UnsupportedModel(ModelError):
    """A model that the installed ONNX Runtime cannot load: an unknown operator, domain or opset."""


class DataError(OnnxqError):
    """Calibration or validation data that does not fit the inputs of the model."""


class RecipeError(OnnxqError):
    """A recipe, plan or option that is unknown or contradicts another."""


class ProviderError(OnnxqError):
    """An execution provider that was asked for and is not in the installed ONNX Runtime."""


class OutputError(OnnxqError):
    """The result cannot be written: no space, no permission, or the output is the input."""


class CrashError(OnnxqError):
    """The process that did the work crashed in native code, or was killed by the system."""
