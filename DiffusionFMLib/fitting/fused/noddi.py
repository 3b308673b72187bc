"""NODDI by Levenberg-Marquardt, one voxel after another."""

from __future__ import annotations

import math

import numpy as np
from numba import njit

UNKNOWNS = 6


@njit(nogil=True, cache=True, error_model="numpy")
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


@njit(nogil=True, cache=True, error_model="numpy")
def _series(watson, sticks, monomials, out):
    """Coefficients, per b-value, of the stick signal as a polynomial of the squared cosine."""
    for g in range(sticks.shape[0]):
        for k in range(watson.shape[0]):
            total = 0.0
            for degree in range(k, watson.shape[0]):
                total += monomials[degree, k] * sticks[g, degree] * watson[degree]
            out[g, k] = total


@njit(nogil=True, cache=True, error_model="numpy")
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


@njit(nogil=True, cache=True, error_model="numpy")
def fit(
    signal, b, bvecs, group, free, parallel, sticks, monomials, table, starts, low, high, max_iterations, theta, done
):
    """Fit a tile.

    signal (N, V) float32; b (N,) ms/um2; bvecs (N, 3); group (N,): position of each volume's b-value in `sticks`
    (G, K); free (N,): signal of free water; monomials (K, K); table (T, K, 2): Watson coefficients over ODI 0...1 and
    their derivatives; starts (S, 2): NDI and ODI to start from; low, high (3,): bounds of NDI, ODI and FWF; theta
    (7, V): comes with directions and ln S0, leaves with all; done (V,): whether converged.
    """
    volumes, voxels = signal.shape
    terms = monomials.shape[0]
    watson, watson_slope = np.empty(terms), np.empty(terms)
    series, series_slope = np.empty((sticks.shape[0], terms)), np.empty((sticks.shape[0], terms))
    y, square = np.empty(volumes), np.empty(volumes)
    gram, gradient = np.empty((UNKNOWNS, UNKNOWNS)), np.empty(UNKNOWNS)
    matrix, step, row = np.empty((UNKNOWNS, UNKNOWNS)), np.empty(UNKNOWNS), np.empty(UNKNOWNS)
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
            y[n] = signal[n, voxel] / scale
        for i in range(3):
            mu[i] = theta[i, voxel]
        for n in range(volumes):
            cos = bvecs[n, 0] * mu[0] + bvecs[n, 1] * mu[1] + bvecs[n, 2] * mu[2]
            square[n] = cos * cos

        # start: of a few fans, the one that together with free water explains most
        best = np.inf
        for s in range(starts.shape[0]):
            v, odi = starts[s, 0], starts[s, 1]
            _interpolate(table, odi, watson, watson_slope)
            _series(watson, sticks, monomials, series)
            tau = (1 + 2 * watson[1]) / 3
            radial = parallel * (1 - v * (1 + tau) / 2)
            excess = parallel * (1 - v * (1 - tau)) - radial
            tt = ti = ii = ty = iy = yy = 0.0
            for n in range(volumes):
                inside = series[group[n], terms - 1]
                for k in range(terms - 2, -1, -1):
                    inside = inside * square[n] + series[group[n], k]
                tissue = v * inside + (1 - v) * math.exp(-b[n] * (radial + excess * square[n]))
                tt += tissue * tissue
                ti += tissue * free[n]
                ii += free[n] * free[n]
                ty += tissue * y[n]
                iy += free[n] * y[n]
                yy += y[n] * y[n]
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
            cost = 0.0
            for i in range(UNKNOWNS):
                step[i] = 0.0
                for j in range(i + 1):
                    matrix[i, j] = 0.0
            for n in range(volumes):
                cos = bvecs[n, 0] * trial_mu[0] + bvecs[n, 1] * trial_mu[1] + bvecs[n, 2] * trial_mu[2]
                x = cos * cos
                g = group[n]
                inside, by_x, by_odi = series[g, terms - 1], 0.0, series_slope[g, terms - 1]
                for k in range(terms - 2, -1, -1):
                    by_x = by_x * x + inside
                    inside = inside * x + series[g, k]
                    by_odi = by_odi * x + series_slope[g, k]
                outside = math.exp(-b[n] * (radial + excess * x))
                bo = -b[n] * outside
                tissue = v * inside + (1 - v) * outside
                model = (1 - f) * tissue + f * free[n]
                left = y[n] - s0 * model
                cost += left * left
                share = s0 * (1 - f)
                by_cos = share * (v * by_x + (1 - v) * bo * excess) * 2 * cos
                row[0] = share * (inside - outside + (1 - v) * bo * parallel * (-(1 + tau) / 2 + (1.5 * tau - 0.5) * x))
                row[1] = share * (v * by_odi + (1 - v) * bo * parallel * v * tau_slope * (1.5 * x - 0.5))
                row[2] = s0 * (free[n] - tissue)
                row[3] = model
                row[4] = by_cos * (bvecs[n, 0] * e1[0] + bvecs[n, 1] * e1[1] + bvecs[n, 2] * e1[2])
                row[5] = by_cos * (bvecs[n, 0] * e2[0] + bvecs[n, 1] * e2[1] + bvecs[n, 2] * e2[2])
                for i in range(UNKNOWNS):
                    step[i] += row[i] * left
                    for j in range(i + 1):
                        matrix[i, j] += row[i] * row[j]
            small = iteration > 0 and best - cost < 1e-7 * best
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
