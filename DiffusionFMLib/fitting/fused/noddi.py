"""NODDI by Levenberg-Marquardt, one voxel after another."""

from __future__ import annotations

import math

import numpy as np
from numba import njit

UNKNOWNS = 6

# sums may be reordered, which lets them vectorise; NaN and infinity keep their meaning
compiled = njit(nogil=True, cache=True, error_model="numpy", fastmath={"reassoc", "contract", "arcp", "nsz"})


@compiled
def _interpolate(table, odi, values, slopes):
    """Cubic Hermite interpolation of the Watson coefficients and of their derivatives by ODI."""
    last = table.shape[0] - 1
    place = min(max(odi, 0.0), 1.0) * last
    index = min(int(place), last - 1)
    t, h = place - index, 1.0 / last
    a = (1 + 2 * t) * (1 - t) ** 2
    b = t * (1 - t) ** 2 * h
    c = t * t * (3 - 2 * t)
    d = t * t * (t - 1) * h
    da = 6 * t * (t - 1) / h
    db = (1 - t) * (1 - 3 * t)
    dd = t * (3 * t - 2)
    for k in range(values.shape[0]):
        f0, g0, f1, g1 = table[index, k, 0], table[index, k, 1], table[index + 1, k, 0], table[index + 1, k, 1]
        values[k] = a * f0 + b * g0 + c * f1 + d * g1
        slopes[k] = da * (f0 - f1) + db * g0 + dd * g1


@compiled
def _series(watson, sticks, monomials, out):
    """Coefficients, per b-value, of the stick signal as a polynomial of the squared cosine."""
    for g in range(sticks.shape[0]):
        for k in range(watson.shape[0]):
            total = 0.0
            for degree in range(k, watson.shape[0]):
                total += monomials[degree, k] * sticks[g, degree] * watson[degree]
            out[g, k] = total


@compiled
def _polynomial(coefficients, ends, square, out):
    """Per b-value a polynomial of the squared cosine, at all of its volumes."""
    start = 0
    for g in range(ends.shape[0]):
        for n in range(start, ends[g]):
            out[n] = coefficients[g, coefficients.shape[1] - 1]
        for k in range(coefficients.shape[1] - 2, -1, -1):
            c = coefficients[g, k]
            for n in range(start, ends[g]):
                out[n] = out[n] * square[n] + c
        start = ends[g]


@compiled
def _polynomial_slope(coefficients, ends, square, out):
    """Derivative of `_polynomial` by the squared cosine."""
    start = 0
    for g in range(ends.shape[0]):
        last = coefficients.shape[1] - 1
        for n in range(start, ends[g]):
            out[n] = last * coefficients[g, last]
        for k in range(last - 1, 0, -1):
            c = k * coefficients[g, k]
            for n in range(start, ends[g]):
                out[n] = out[n] * square[n] + c
        start = ends[g]


@compiled
def _decay(b, radial, excess, square, out):
    """exp(-b (radial + excess square)); as a power of a Taylor series, which vectorises, to 1e-7 up to 12."""
    for n in range(b.shape[0]):
        u = -b[n] * (radial + excess * square[n]) / 16
        e = 1 + u * (
            1 + u / 2 * (1 + u / 3 * (1 + u / 4 * (1 + u / 5 * (1 + u / 6 * (1 + u / 7 * (1 + u / 8 * (1 + u / 9)))))))
        )
        e *= e
        e *= e
        e *= e
        out[n] = e * e


@compiled
def _dot(a, b):
    total = 0.0
    for n in range(a.shape[0]):
        total += a[n] * b[n]
    return total


@compiled
def _with_floor(table, end, signal, sigma):
    """Mean of the measured signal, and its derivative by the signal."""
    if sigma == 0:
        return signal, 1.0
    ratio = signal / sigma
    if ratio > end:
        inverse = 1 / ratio
        return sigma * (ratio + inverse / 2 + inverse**3 / 8), 1 - inverse**2 / 2 - 3 * inverse**4 / 8
    last = table.shape[0] - 1
    h = end / last
    index = min(int(ratio / h), last - 1)
    t = ratio / h - index
    f0, g0, f1, g1 = table[index, 0], table[index, 1], table[index + 1, 0], table[index + 1, 1]
    mean = f0 + t * t * (3 - 2 * t) * (f1 - f0) + h * t * (1 - t) * ((1 - t) * g0 - t * g1)
    slope = 6 * t * (1 - t) / h * (f1 - f0) + (1 - t) * (1 - 3 * t) * g0 + t * (3 * t - 2) * g1
    return sigma * mean, slope


@compiled
def _solve(matrix, vector, n):
    """Cholesky solution in place; False if the matrix is not positive definite."""
    for j in range(n):
        for k in range(j):
            matrix[j, j] -= matrix[j, k] * matrix[j, k]
        if not matrix[j, j] > 0:
            return False
        matrix[j, j] = math.sqrt(matrix[j, j])
        for i in range(j + 1, n):
            for k in range(j):
                matrix[i, j] -= matrix[i, k] * matrix[j, k]
            matrix[i, j] /= matrix[j, j]
    for i in range(n):
        for k in range(i):
            vector[i] -= matrix[i, k] * vector[k]
        vector[i] /= matrix[i, i]
    for i in range(n - 1, -1, -1):
        for k in range(i + 1, n):
            vector[i] -= matrix[k, i] * vector[k]
        vector[i] /= matrix[i, i]
    return True


@compiled
def fit(
    signal,
    order,
    b,
    bvecs,
    ends,
    free,
    parallel,
    sticks,
    monomials,
    table,
    starts,
    low,
    high,
    sigma,
    prior,
    floor,
    floor_end,
    max_iterations,
    tolerance,
    theta,
    done,
):
    """Fit a tile.

    signal (N, V) float32; order (N,): its rows by rising b-value, in which all of the following are; b (N,) ms/um2;
    bvecs (N, 3); ends (G,): past the last volume of each b-value; free (N,): signal of free water; sticks (G, K);
    monomials (K, K): coefficients of the Legendre polynomials; table (T, K, 2): Watson coefficients over ODI 0...1 and
    their derivatives; starts (S, 2): NDI and ODI to start from; low, high (3,): bounds of NDI, ODI and FWF; sigma:
    noise, 0 for none; prior (3, 2): exponents of x and 1 - x; floor (F, 2): mean of Rician noise around signals of
    0...floor_end sigma, and its slope; theta (7, V): comes with directions, leaves with all; done (V,): converged.
    """
    volumes, voxels = signal.shape
    terms = monomials.shape[0]
    watson, watson_slope = np.empty(terms), np.empty(terms)
    series, series_slope = np.empty((sticks.shape[0], terms)), np.empty((sticks.shape[0], terms))
    y, left, cosine, square = np.empty(volumes), np.empty(volumes), np.empty(volumes), np.empty(volumes)
    tissue, inside, outside = np.empty(volumes), np.empty(volumes), np.empty(volumes)
    by_odi, by_square = np.empty(volumes), np.empty(volumes)
    gram, gradient = np.empty((UNKNOWNS, UNKNOWNS)), np.empty(UNKNOWNS)
    matrix, step = np.empty((UNKNOWNS, UNKNOWNS)), np.empty(UNKNOWNS)
    rows = np.empty((UNKNOWNS, volumes))
    mu, e1, e2, trial_mu = np.empty(3), np.empty(3), np.empty(3), np.empty(3)
    p, trial = np.empty(4), np.empty(4)
    fixed = np.empty(UNKNOWNS, np.bool_)

    for voxel in range(voxels):
        done[voxel] = False
        scale = 0.0
        for n in range(volumes):
            scale = max(scale, signal[n, voxel])
        if not (scale > 0 and scale < 1e30):
            for i in range(7):
                theta[i, voxel] = 0.0
            continue
        for n in range(volumes):
            y[n] = signal[order[n], voxel] / scale
        for i in range(3):
            mu[i] = theta[i, voxel]
        for n in range(volumes):
            cos = bvecs[n, 0] * mu[0] + bvecs[n, 1] * mu[1] + bvecs[n, 2] * mu[2]
            square[n] = cos * cos

        ii, iy, yy = _dot(free, free), _dot(free, y), _dot(y, y)
        # start: of a few fans, the one that together with free water explains most
        best = np.inf
        for s in range(starts.shape[0]):
            v, odi = starts[s, 0], starts[s, 1]
            _interpolate(table, odi, watson, watson_slope)
            _series(watson, sticks, monomials, series)
            tau = (1 + 2 * watson[1]) / 3
            radial = parallel * (1 - v * (1 + tau) / 2)
            excess = parallel * (1 - v * (1 - tau)) - radial
            _polynomial(series, ends, square, inside)
            _decay(b, radial, excess, square, outside)
            for n in range(volumes):
                tissue[n] = v * inside[n] + (1 - v) * outside[n]
            tt, ti, ty = _dot(tissue, tissue), _dot(tissue, free), _dot(tissue, y)
            determinant = tt * ii - ti * ti
            a, c = (ty * ii - iy * ti) / determinant, (iy * tt - ty * ti) / determinant
            if a <= 0:
                a, c = 0.0, max(iy / ii, 0.0)
            elif c <= 0:
                a, c = ty / tt, 0.0
            cost = yy - 2 * (a * ty + c * iy) + a * a * tt + 2 * a * c * ti + c * c * ii
            if cost < best and a + c > 0:
                best = cost
                p[0], p[1], p[2], p[3] = v, odi, c / (a + c), a + c
        # off the bounds, where nothing pulls
        p[2] = min(max(p[2], low[2] + 1e-3), high[2] - 1e-3)

        best = np.inf
        damping = 1e-2
        for i in range(4):
            trial[i] = p[i]
        for i in range(3):
            trial_mu[i] = mu[i]
        for iteration in range(max_iterations):
            # cost and derivatives at the trial
            sign = 1.0 if trial_mu[2] >= 0 else -1.0
            q = -1 / (sign + trial_mu[2])
            e1[0], e1[1], e1[2] = (
                1 + sign * trial_mu[0] ** 2 * q,
                sign * trial_mu[0] * trial_mu[1] * q,
                -sign * trial_mu[0],
            )
            e2[0], e2[1], e2[2] = trial_mu[0] * trial_mu[1] * q, sign + trial_mu[1] ** 2 * q, -trial_mu[1]
            v, odi, f, s0 = trial[0], trial[1], trial[2], trial[3]
            _interpolate(table, odi, watson, watson_slope)
            _series(watson, sticks, monomials, series)
            _series(watson_slope, sticks, monomials, series_slope)
            tau, tau_slope = (1 + 2 * watson[1]) / 3, 2 * watson_slope[1] / 3
            radial = parallel * (1 - v * (1 + tau) / 2)
            excess = parallel * (1 - v * (1 - tau)) - radial
            for n in range(volumes):
                cosine[n] = bvecs[n, 0] * trial_mu[0] + bvecs[n, 1] * trial_mu[1] + bvecs[n, 2] * trial_mu[2]
                square[n] = cosine[n] * cosine[n]
            _polynomial(series, ends, square, inside)
            _polynomial(series_slope, ends, square, by_odi)
            _polynomial_slope(series, ends, square, by_square)
            _decay(b, radial, excess, square, outside)
            share = s0 * (1 - f)
            for n in range(volumes):
                tissue[n] = v * inside[n] + (1 - v) * outside[n]
                rows[3, n] = (1 - f) * tissue[n] + f * free[n]
                # of the exponent of what is outside
                bo = -(1 - v) * b[n] * outside[n]
                rows[0, n] = share * (
                    inside[n] - outside[n] + bo * parallel * ((1.5 * tau - 0.5) * square[n] - (1 + tau) / 2)
                )
                rows[1, n] = share * (v * by_odi[n] + bo * parallel * v * tau_slope * (1.5 * square[n] - 0.5))
                rows[2, n] = s0 * (free[n] - tissue[n])
                turn = 2 * share * cosine[n] * (v * by_square[n] + bo * excess)
                rows[4, n] = turn * (bvecs[n, 0] * e1[0] + bvecs[n, 1] * e1[1] + bvecs[n, 2] * e1[2])
                rows[5, n] = turn * (bvecs[n, 0] * e2[0] + bvecs[n, 1] * e2[1] + bvecs[n, 2] * e2[2])
            for n in range(volumes):
                mean, rise = _with_floor(floor, floor_end, s0 * rows[3, n], sigma / scale)
                left[n] = y[n] - mean
                if sigma > 0:
                    for i in range(UNKNOWNS):
                        rows[i, n] *= rise
            cost = _dot(left, left)
            for i in range(UNKNOWNS):
                step[i] = _dot(rows[i], left)
                for j in range(i + 1):
                    matrix[i, j] = _dot(rows[i], rows[j])
            # the prior keeps noise from passing for a sharp fan or for free water
            noise = (sigma / scale) ** 2
            for i in range(3):
                below, above = noise * prior[i, 0], noise * prior[i, 1]
                near, far = max(trial[i], 1e-3), max(1 - trial[i], 1e-3)
                cost -= 2 * (below * math.log(near) + above * math.log(far))
                step[i] += below / near - above / far
                matrix[i, i] += below / near**2 + above / far**2
            small = iteration > 0 and best - cost < tolerance * abs(best)
            if cost < best:
                best = cost
                for i in range(4):
                    p[i] = trial[i]
                for i in range(3):
                    mu[i] = trial_mu[i]
                for i in range(UNKNOWNS):
                    gradient[i] = step[i]
                    for j in range(i + 1):
                        gram[i, j] = matrix[i, j]
                damping = max(damping * 0.1, 1e-8)
                if small:
                    done[voxel] = True
                    break
            else:
                damping *= 10
                if damping > 1e8:
                    done[voxel] = True
                    break
            # a parameter at its bound that is pulled beyond stays
            for i in range(UNKNOWNS):
                fixed[i] = i < 3 and ((p[i] <= low[i] and gradient[i] < 0) or (p[i] >= high[i] and gradient[i] > 0))
            for i in range(UNKNOWNS):
                step[i] = 0.0 if fixed[i] else gradient[i]
                for j in range(i):
                    matrix[i, j] = 0.0 if fixed[i] or fixed[j] else gram[i, j]
                matrix[i, i] = 1.0 if fixed[i] else gram[i, i] * (1 + damping) + 1e-12
            if not _solve(matrix, step, UNKNOWNS):
                damping *= 10
                continue
            moved = 0.0
            for i in range(4):
                trial[i] = p[i] + step[i]
                if i < 3:
                    trial[i] = min(max(trial[i], low[i]), high[i])
                else:
                    trial[i] = max(trial[i], 1e-6)
                moved = max(moved, abs(trial[i] - p[i]))
            # the axes across belong to the accepted direction
            sign = 1.0 if mu[2] >= 0 else -1.0
            q = -1 / (sign + mu[2])
            u0 = 1 + sign * mu[0] ** 2 * q
            u1 = sign * mu[0] * mu[1] * q
            turn0 = step[4] * u0 + step[5] * mu[0] * mu[1] * q
            turn1 = step[4] * u1 + step[5] * (sign + mu[1] ** 2 * q)
            turn2 = -step[4] * sign * mu[0] - step[5] * mu[1]
            angle = math.sqrt(turn0 * turn0 + turn1 * turn1 + turn2 * turn2)
            # half a right angle at most: beyond, the tangent tells nothing
            shrink = min(1.0, 0.8 / angle) if angle > 0 else 1.0
            moved = max(moved, angle * shrink)
            trial_mu[0], trial_mu[1], trial_mu[2] = (
                mu[0] + shrink * turn0,
                mu[1] + shrink * turn1,
                mu[2] + shrink * turn2,
            )
            length = math.sqrt(trial_mu[0] ** 2 + trial_mu[1] ** 2 + trial_mu[2] ** 2)
            for i in range(3):
                trial_mu[i] /= length
            if moved < 1e-6:
                done[voxel] = True
                break
        for i in range(3):
            theta[i, voxel] = mu[i]
            theta[3 + i, voxel] = p[i]
        theta[6, voxel] = math.log(p[3] * scale)
