"""A fork that puts its own classes around a model, in a module that knows no sampling function."""


def make(base):
    class Fork(base):
        def autoregressive_infer_cfg(self, *args, **kwargs):
            return super().autoregressive_infer_cfg(*args, **kwargs)

    class Plain(base):
        pass

    return Fork, Plain
