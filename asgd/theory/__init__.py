"""Theory beside measurement: staleness and run time laws, stability, delay equations, curvature.

Example:
    >>> from asgd import theory
    >>> theory.critical_step(tau=1)  # Times the largest Hessian eigenvalue.
    1.0
"""

import importlib

_PUBLIC = {
    "stability": ["answer", "companion", "critical_step", "fastest_step", "spectral_radius"],
    "on_trace": ["critical_step_on_trace", "noise_on_trace", "rates_on_trace"],
    "mean_square": ["discrete_stationary_variance", "mean_square_critical_step",
                    "mean_square_radius"],
    "dde": ["dde_critical_gain", "dde_rightmost_root", "stationary_variance"],
    "staleness": ["mean_staleness", "staleness_law", "tail"],
    "run_time": ["Prediction", "predict"],
    "workers": ["Workers", "optimal_workers"],
    "curvature": ["extreme_eigenvalues"],
    "noise": ["gradient_noise"],
    "sdde": ["coefficients", "integrate"],
    "planner": ["make_problem", "plan"],
    "times": ["expected_order_statistic"],
}
_HOME = {name: module for module, names in _PUBLIC.items() for name in names}

__all__ = sorted(_HOME)


def __getattr__(name):
    if name not in _HOME:
        raise AttributeError(f"module 'asgd.theory' has no attribute {name!r}")
    return getattr(importlib.import_module(f"asgd.theory.{_HOME[name]}"), name)


def __dir__():
    return __all__
