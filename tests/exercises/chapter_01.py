"""Answers to the exercises of chapter 01: right ones, and the usual wrong ones with their hints."""

import math


def flow(x, m, s, sigma, target):
    return m + (x - m) * math.sqrt((s**2 + target**2) / (s**2 + sigma**2))


def flow_of_variances(x, m, s, sigma, target):
    return m + (x - m) * (s**2 + target**2) / (s**2 + sigma**2)


def flow_without_mean(x, m, s, sigma, target):
    return x * math.sqrt((s**2 + target**2) / (s**2 + sigma**2))


def flow_upwards(x, m, s, sigma, target):
    return flow(x, m, s, target, sigma)


def flow_denoised(x, m, s, sigma, target):
    return m + s**2 / (s**2 + sigma**2) * (x - m)


def flow_of_noise_alone(x, m, s, sigma, target):
    return m + (x - m) * target / sigma


def flow_of_strengths(x, m, s, sigma, target):
    return m + (x - m) * (s + target) / (s + sigma)


def flow_one_step(x, m, s, sigma, target):
    return x + (target - sigma) * (x - flow_denoised(x, m, s, sigma, target)) / sigma


def climb(x, sigma, churn, noise):
    return x + sigma * math.sqrt((1 + churn) ** 2 - 1) * noise


def v_denoiser(network, x, sigma):
    size = math.sqrt(1 + sigma**2)
    return x / size**2 - sigma / size * network(x / size)


RIGHT = {
    "1.1": 0.964,
    "1.2": flow,
    "1.3": climb,
    "1.4": v_denoiser,
    "1.5": lambda: ([1.0], [0.0], [0.001]),
}

WRONG = {
    "1.1": [
        (0.5, "should move it"),
        (1.0, "nearest point"),
        (0.4, "linear guess"),
        (math.tanh(1.0), "variance of the noise"),
        (0.982, "probability of the right point"),
        (0.2, "is not"),
    ],
    "1.2": [
        (flow_of_variances, "take the root"),
        (flow_without_mean, "mean stays"),
        (flow_upwards, "swap the levels"),
        (flow_denoised, "not the path"),
        (flow_of_noise_alone, "spread of their own"),
        (flow_of_strengths, "strengths do not"),
        (flow_one_step, "one Euler step"),
    ],
    "1.3": [
        (lambda x, sigma, churn, noise: x + churn * sigma * noise, "do not add"),
        (lambda x, sigma, churn, noise: x + (1 + churn) * sigma * noise, "noisy already"),
        (
            lambda x, sigma, churn, noise: x + ((1 + churn) ** 2 - 1) * sigma**2 * noise,
            "take its root",
        ),
        (lambda x, sigma, churn, noise: x + 2 * sigma * noise, "the variance reaches"),
        (lambda x, sigma, churn, noise: x + noise**2, "one multiple of the noise"),
        (lambda x, sigma, churn, noise: x.sum(), "expected a tensor"),
    ],
    "1.4": [
        (
            lambda network, x, s: x / (1 + s**2) - s / math.sqrt(1 + s**2) * network(x),
            "divided by sqrt",
        ),
        (
            lambda network, x, s: (x - s * network(x / math.sqrt(1 + s**2))) / math.sqrt(1 + s**2),
            "wrong scale",
        ),
        (lambda network, x, s: x - s * network(x / math.sqrt(1 + s**2)), "reads the output"),
        (
            lambda network, x, s: (
                x / (1 + s**2) + s / math.sqrt(1 + s**2) * network(x / math.sqrt(1 + s**2))
            ),
            "sign of v",
        ),
        (
            lambda network, x, s: x / (1 + s**2) - s * network(x / math.sqrt(1 + s**2)),
            "the noise, too",
        ),
        (lambda network, x, s: network(x / math.sqrt(1 + s**2)), "v itself"),
    ],
    "1.5": [
        (lambda: ([0.3, 0.7], [-1.0, 1.0], [0.3, 0.3]), "caught by one mode"),
        (lambda: ([0.5, 0.5], [-10.0, 10.0], [0.01, 0.01]), "caught by one mode"),
        (lambda: ([1.0], [0.0], [0.01]), "very last step"),
        (lambda: ([1.0], [0.0], [0.00001]), "at least 1e-4"),
        (lambda: ([1.0, 1.0], [0.0], [0.1]), "as many of each"),
        (lambda: ([1.0], [50.0], [0.1]), "means within 10"),
    ],
}
