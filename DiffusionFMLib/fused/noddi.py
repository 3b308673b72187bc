"""Levenberg-Marquardt of NODDI as one compiled loop for the CPU; it takes the steps of `noddi_search`.

A block of voxels takes each step together; one that is done makes room for the next of the tile.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from DiffusionFMLib.fused.blocks import BLOCK, FAST, HALF, ONE, TWO, ZERO, F, compiled, logarithm, solve

UNKNOWNS = 6
PAIRS = 21

TERMS = 10
"""Terms of the stick signal as a polynomial; so many suffice to degree 18 of the Legendre series."""

MAX_TURN = F(0.8)
LEAST = F(1e-3)
RIDGE = F(1e-12)
TINY = F(1e-20)
MANY_SIGMAS = F(1e4)
LEAST_DAMPING, FIRST_DAMPING, MOST_DAMPING, LESS, MORE = F(1e-8), F(1e-2), F(1e8), F(0.1), F(10)
THREE_HALVES, TWO_THIRDS = F(1.5), F(2 / 3)
LEAST_STEP = F(5e-7)
SIXTEENTH = F(1 / 16)
T2, T3, T4, T5, T6, T7, T8, T9 = (F(1 / n) for n in range(2, 10))

# rows of the block that `evaluate` works on; one array, because the compiler vectorises no loop over many
NDI, ODI, FWF, S0, MX, MY, MZ = 0, 1, 2, 3, 4, 5, 6
AX, AY, AZ, BX, BY, BZ = 7, 8, 9, 10, 11, 12
TAU, TAU_SLOPE, VARIANCE, PRECISION, MEASURED, COST = 13, 14, 15, 16, 17, 18
GRADIENT, GRAM, LEFT = 19, 25, 46
VALUES, SLOPES, ROWS = 47, 57, 67


@compiled
def decay(x):
    """Exp of a number between -12 and 0, to 1e-6: a Taylor series to the sixteenth power."""
    u = x * SIXTEENTH
    e = ONE + u * (ONE + u * T2 * (ONE + u * T3 * (ONE + u * T4 * (ONE + u * T5 * (ONE + u * T6 * (
        ONE + u * T7 * (ONE + u * T8 * (ONE + u * T9))))))))  # fmt: skip
    e *= e
    e *= e
    e *= e
    return e * e


@compiled
def interpolate(table, odi, values, slopes):
    """Cubic Hermite interpolation of the Watson coefficients (`noddi_signal.Protocol.table`), and its derivative."""
    last = table.shape[0] - 1
    place = min(max(odi, ZERO), ONE) * F(last)
    index = min(int(place), last - 1)
    t, h = place - F(index), ONE / F(last)
    a, b = (ONE + TWO * t) * (ONE - t) ** 2, t * (ONE - t) ** 2 * h
    c, d = t * t * (F(3) - TWO * t), t * t * (t - ONE) * h
    da, db, dd = F(6) * t * (t - ONE) / h, (ONE - t) * (ONE - F(3) * t), t * (F(3) * t - TWO)
    for k in range(values.shape[0]):
        f0, g0, f1, g1 = table[index, 0, k], table[index, 1, k], table[index + 1, 0, k], table[index + 1, 1, k]
        values[k] = a * f0 + b * g0 + c * f1 + d * g1
        slopes[k] = da * (f0 - f1) + db * g0 + dd * g1


@compiled
def volume(s, b, gx, gy, gz, free, parallel, floor):
    """Add one volume to cost, gradient and Gram matrix of a block; `s` is flat."""
    n0, n1, n2, n3 = floor[0, 0], floor[0, 1], floor[0, 2], floor[0, 3]
    d1, d2, d3, d4 = floor[1, 1], floor[1, 2], floor[1, 3], floor[1, 4]
    for v in range(BLOCK):
        ndi, fwf, s0 = s[NDI * BLOCK + v], s[FWF * BLOCK + v], s[S0 * BLOCK + v]
        tau = s[TAU * BLOCK + v]
        cosine = gx * s[MX * BLOCK + v] + gy * s[MY * BLOCK + v] + gz * s[MZ * BLOCK + v]
        square = cosine * cosine
        u = square - HALF
        inside, by_odi, by_square = s[(VALUES + TERMS - 1) * BLOCK + v], s[(SLOPES + TERMS - 1) * BLOCK + v], ZERO
        for k in range(TERMS - 2, -1, -1):
            by_square = by_square * u + inside
            inside = inside * u + s[(VALUES + k) * BLOCK + v]
            by_odi = by_odi * u + s[(SLOPES + k) * BLOCK + v]

        radial = parallel * (ONE - ndi * (ONE + tau) * HALF)
        excess = parallel * (ONE - ndi * (ONE - tau)) - radial
        outside = decay(-b * (radial + excess * square))
        tissue = ndi * inside + (ONE - ndi) * outside
        model = tissue + fwf * (free - tissue)

        # what noise makes of the signal, and its derivative
        signal = s0 * model
        t = min(signal * signal * s[PRECISION * BLOCK + v], MANY_SIGMAS)
        top = n0 + t * (n1 + t * (n2 + t * n3))
        top_slope = n1 + t * (TWO * n2 + F(3) * t * n3)
        bottom = ONE / (ONE + t * (d1 + t * (d2 + t * (d3 + t * d4))))
        bottom_slope = d1 + t * (TWO * d2 + t * (F(3) * d3 + F(4) * t * d4))
        ratio = top * bottom
        mean = np.sqrt(signal * signal + s[VARIANCE * BLOCK + v] * (ONE + ratio) + TINY)
        rise = signal * (ONE + (top_slope - ratio * bottom_slope) * bottom) / mean
        left = s[MEASURED * BLOCK + v] - mean

        whole = s0 * rise
        share = whole * (ONE - fwf)
        # of the exponent of what is outside
        bo = -(ONE - ndi) * b * outside
        turn = TWO * share * cosine * (ndi * by_square + bo * excess)
        j0 = share * (inside - outside + bo * parallel * ((THREE_HALVES * tau - HALF) * square - (ONE + tau) * HALF))
        j1 = share * (ndi * by_odi + bo * parallel * ndi * s[TAU_SLOPE * BLOCK + v] * (THREE_HALVES * square - HALF))
        j2 = whole * (free - tissue)
        j3 = rise * model
        j4 = turn * (gx * s[AX * BLOCK + v] + gy * s[AY * BLOCK + v] + gz * s[AZ * BLOCK + v])
        j5 = turn * (gx * s[BX * BLOCK + v] + gy * s[BY * BLOCK + v] + gz * s[BZ * BLOCK + v])

        s[COST * BLOCK + v] += left * left
        s[GRADIENT * BLOCK + v] += j0 * left
        s[(GRADIENT + 1) * BLOCK + v] += j1 * left
        s[(GRADIENT + 2) * BLOCK + v] += j2 * left
        s[(GRADIENT + 3) * BLOCK + v] += j3 * left
        s[(GRADIENT + 4) * BLOCK + v] += j4 * left
        s[(GRADIENT + 5) * BLOCK + v] += j5 * left
        s[GRAM * BLOCK + v] += j0 * j0
        s[(GRAM + 1) * BLOCK + v] += j1 * j0
        s[(GRAM + 2) * BLOCK + v] += j2 * j0
        s[(GRAM + 3) * BLOCK + v] += j3 * j0
        s[(GRAM + 4) * BLOCK + v] += j4 * j0
        s[(GRAM + 5) * BLOCK + v] += j5 * j0
        s[(GRAM + 6) * BLOCK + v] += j1 * j1
        s[(GRAM + 7) * BLOCK + v] += j2 * j1
        s[(GRAM + 8) * BLOCK + v] += j3 * j1
        s[(GRAM + 9) * BLOCK + v] += j4 * j1
        s[(GRAM + 10) * BLOCK + v] += j5 * j1
        s[(GRAM + 11) * BLOCK + v] += j2 * j2
        s[(GRAM + 12) * BLOCK + v] += j3 * j2
        s[(GRAM + 13) * BLOCK + v] += j4 * j2
        s[(GRAM + 14) * BLOCK + v] += j5 * j2
        s[(GRAM + 15) * BLOCK + v] += j3 * j3
        s[(GRAM + 16) * BLOCK + v] += j4 * j3
        s[(GRAM + 17) * BLOCK + v] += j5 * j3
        s[(GRAM + 18) * BLOCK + v] += j4 * j4
        s[(GRAM + 19) * BLOCK + v] += j5 * j4
        s[(GRAM + 20) * BLOCK + v] += j5 * j5


@compiled
def across(s):
    """Two axes across the direction (Duff et al., 2017)."""
    for v in range(BLOCK):
        x, y, z = s[MX * BLOCK + v], s[MY * BLOCK + v], s[MZ * BLOCK + v]
        sign = ONE if z >= ZERO else -ONE
        q = -ONE / (sign + z)
        b = x * y * q
        s[AX * BLOCK + v], s[AY * BLOCK + v], s[AZ * BLOCK + v] = ONE + sign * x * x * q, sign * b, -sign * x
        s[BX * BLOCK + v], s[BY * BLOCK + v], s[BZ * BLOCK + v] = b, sign + y * y * q, -y


@compiled
def evaluate(y, b, bvecs, ends, free, series, table, parallel, floor, watson, watson_slope, values, slopes, rows):
    """Cost, gradient and Gram matrix of a block at its trial parameters, without the prior.

    y (N, V); rows (`ROWS`, V); watson, watson_slope (K, V), values, slopes (K,): room; else as in `fit`.
    """
    s = rows.reshape(-1)
    across(s)
    for v in range(BLOCK):
        interpolate(table, rows[ODI, v], values, slopes)
        for k in range(values.shape[0]):
            watson[k, v], watson_slope[k, v] = values[k], slopes[k]
    for v in range(BLOCK):
        s[TAU * BLOCK + v] = (ONE + TWO * watson[1, v]) / F(3)
        s[TAU_SLOPE * BLOCK + v] = TWO_THIRDS * watson_slope[1, v]
    rows[COST : GRAM + PAIRS] = ZERO
    start = 0
    for g in range(ends.shape[0]):
        for k in range(TERMS):
            for v in range(BLOCK):
                rows[VALUES + k, v] = ZERO
                rows[SLOPES + k, v] = ZERO
            for degree in range(k, watson.shape[0]):
                c = series[g, k, degree]
                for v in range(BLOCK):
                    rows[VALUES + k, v] += c * watson[degree, v]
                for v in range(BLOCK):
                    rows[SLOPES + k, v] += c * watson_slope[degree, v]
        for n in range(start, ends[g]):
            for v in range(BLOCK):
                rows[MEASURED, v] = y[n, v]
            volume(s, b[n], bvecs[n, 0], bvecs[n, 1], bvecs[n, 2], free[n], parallel, floor)
        start = ends[g]


@compiled
def first_guess(y, mu, b, bvecs, ends, free, fans, fan_series, square, tissue, sums, p):
    """NDI, ODI, FWF and S0, p (4, V), of the fan that together with free water explains most of y (N, V).

    mu (3, V); fans (S, 4): NDI, ODI and the two diffusivities outside; fan_series (S, G, `TERMS`); square (N, V),
    tissue (V,) and sums (6, V): room.
    """
    volumes = y.shape[0]
    ii = ZERO
    for v in range(BLOCK):
        sums[0, v] = sums[1, v] = ZERO
        sums[5, v] = F(np.inf)
    for n in range(volumes):
        ii += free[n] * free[n]
        gx, gy, gz, i = bvecs[n, 0], bvecs[n, 1], bvecs[n, 2], free[n]
        for v in range(BLOCK):
            cosine = gx * mu[0, v] + gy * mu[1, v] + gz * mu[2, v]
            square[n, v] = cosine * cosine
        for v in range(BLOCK):
            sums[0, v] += i * y[n, v]
        for v in range(BLOCK):
            sums[1, v] += y[n, v] * y[n, v]
    for f in range(fans.shape[0]):
        ndi, odi, radial, excess = fans[f, 0], fans[f, 1], fans[f, 2], fans[f, 3]
        sums[2:5] = ZERO
        start = 0
        for g in range(ends.shape[0]):
            c = fan_series[f, g]
            for n in range(start, ends[g]):
                i, across_b, along_b = free[n], -b[n] * radial, -b[n] * excess
                for v in range(BLOCK):
                    u = square[n, v] - HALF
                    inside = c[TERMS - 1]
                    for k in range(TERMS - 2, -1, -1):
                        inside = inside * u + c[k]
                    tissue[v] = ndi * inside + (ONE - ndi) * decay(across_b + along_b * square[n, v])
                for v in range(BLOCK):
                    sums[2, v] += tissue[v] * tissue[v]
                for v in range(BLOCK):
                    sums[3, v] += tissue[v] * i
                for v in range(BLOCK):
                    sums[4, v] += tissue[v] * y[n, v]
            start = ends[g]
        for v in range(BLOCK):
            iy, yy, tt, ti, ty = sums[0, v], sums[1, v], sums[2, v], sums[3, v], sums[4, v]
            scale = ONE / (tt * ii - ti * ti)
            a, c = (ty * ii - iy * ti) * scale, (iy * tt - ty * ti) * scale
            if a <= ZERO:
                a, c = ZERO, max(iy / ii, ZERO)
            elif c <= ZERO:
                a, c = ty / tt, ZERO
            cost = yy - TWO * (a * ty + c * iy) + a * a * tt + TWO * a * c * ti + c * c * ii
            if cost < sums[5, v] and a + c > ZERO:
                sums[5, v] = cost
                p[0, v], p[1, v], p[2, v], p[3, v] = ndi, odi, c / (a + c), a + c


@compiled
def add_prior(rows, prior, near_far, bits):
    """Add the prior's part; near_far (6, V): room."""
    for i in range(3):
        for v in range(BLOCK):
            near_far[2 * i, v] = rows[NDI + i, v]
            near_far[2 * i + 1, v] = ONE - rows[NDI + i, v]
    rows[LEFT] = rows[COST]
    for i in range(6):
        logarithm(near_far, i, LEAST, bits)
    for i in range(3):
        diagonal = GRAM + i * UNKNOWNS - i * (i - 1) // 2
        for v in range(BLOCK):
            below, above = rows[VARIANCE, v] * prior[i, 0], rows[VARIANCE, v] * prior[i, 1]
            rows[COST, v] -= TWO * (below * near_far[2 * i, v] + above * near_far[2 * i + 1, v])
            near, far = max(rows[NDI + i, v], LEAST), max(ONE - rows[NDI + i, v], LEAST)
            rows[GRADIENT + i, v] += below / near - above / far
            rows[diagonal, v] += below / (near * near) + above / (far * far)


@compiled
def accept(rows, best, damping, tolerance, state):
    """Keep trials that are better; state (V,) becomes 1 where another step would gain nothing.

    best (`ROWS`, V): like `rows`, of the best parameters so far.
    """
    for v in range(BLOCK):
        gain = best[COST, v] - rows[COST, v]
        better = gain > ZERO
        damping[v] = max(damping[v] * LESS, LEAST_DAMPING) if better else damping[v] * MORE
        state[v] = 1 if abs(gain) < tolerance * abs(best[COST, v]) or damping[v] > MOST_DAMPING else 0
    for i in range(VALUES):
        for v in range(BLOCK):
            better = best[COST, v] > rows[COST, v]
            # COST itself comes last
            if i != COST:
                best[i, v] = rows[i, v] if better else best[i, v]
    for v in range(BLOCK):
        best[COST, v] = min(best[COST, v], rows[COST, v])


@compiled
def propose(rows, best, damping, low, high, matrix, step, inverse, scaled, held, state):
    """Parameters to try next into `rows`; state becomes 1 where they hardly move."""
    for i in range(UNKNOWNS):
        for v in range(BLOCK):
            # a parameter at its bound that is pulled beyond stays
            held[i, v] = ZERO
            if i < 3:
                p, pull = best[NDI + i, v], best[GRADIENT + i, v]
                held[i, v] = ONE if (p <= low[i] and pull < ZERO) or (p >= high[i] and pull > ZERO) else ZERO
            step[i, v] = best[GRADIENT + i, v] * (ONE - held[i, v])
    place = 0
    for j in range(UNKNOWNS):
        for i in range(j, UNKNOWNS):
            for v in range(BLOCK):
                matrix[place, v] = best[GRAM + place, v] * (ONE - held[i, v]) * (ONE - held[j, v])
            if i == j:
                for v in range(BLOCK):
                    matrix[place, v] = matrix[place, v] * (ONE + damping[v]) + RIDGE + held[i, v]
            place += 1
    solve(matrix, step, inverse, scaled)
    for v in range(BLOCK):
        moved = ZERO
        for i in range(3):
            p = best[NDI + i, v]
            rows[NDI + i, v] = min(max(p + step[i, v], low[i]), high[i])
            moved = max(moved, abs(rows[NDI + i, v] - p))
        rows[S0, v] = max(best[S0, v] + step[3, v], LEAST * LEAST)
        moved = max(moved, abs(rows[S0, v] - best[S0, v]))
        x = step[4, v] * best[AX, v] + step[5, v] * best[BX, v]
        y = step[4, v] * best[AY, v] + step[5, v] * best[BY, v]
        z = step[4, v] * best[AZ, v] + step[5, v] * best[BZ, v]
        angle = np.sqrt(x * x + y * y + z * z)
        shrink = MAX_TURN / max(angle, MAX_TURN)
        x, y, z = best[MX, v] + shrink * x, best[MY, v] + shrink * y, best[MZ, v] + shrink * z
        length = ONE / np.sqrt(x * x + y * y + z * z)
        rows[MX, v], rows[MY, v], rows[MZ, v] = x * length, y * length, z * length
        if max(moved, angle) < LEAST_STEP:
            state[v] = 1


@njit(
    "void(f4[:, ::1], i8[::1], f4[::1], f4[:, ::1], i8[::1], f4[::1], f4[:, :, ::1], f4[:, :, ::1], f4[:, ::1],"
    " f4[:, :, ::1], f4, f4[::1], f4[::1], f4[:, ::1], f4[:, ::1], f4, i8, f4, f4[:, ::1], b1[::1], f4[::1])",
    nogil=True, cache=True, error_model="numpy", fastmath=FAST,
)  # fmt: skip
def fit(
    signal, order, b, bvecs, ends, free, series, table, fans, fan_series, parallel, low, high, prior, floor, sigma,
    max_iterations, tolerance, theta, done, residual,
):  # fmt: skip
    """Fit a tile.

    signal (N, V); order (N,): its rows by rising b-value, in which all of the following are; b (N,) ms/um2;
    bvecs (N, 3); ends (G,): past the last volume of each b-value; free (N,): signal of free water; series
    (G, `TERMS`, K): makes polynomials of the squared cosine - 1/2 from Watson coefficients; table (T, 2, K): of
    `noddi_signal.Protocol`; fans (S, 4) and fan_series (S, G, `TERMS`): see `first_guess`; low, high (3,): bounds of
    NDI, ODI and FWF; prior (3, 2): exponents of x and 1 - x; floor (2, 5): see `noddi_signal.FLOOR`; sigma: noise, 0
    for none; theta (7, V): comes with directions, leaves with all; done (V,): converged; residual (V,): root mean
    square over S0.
    """
    volumes, voxels = signal.shape
    terms = series.shape[2]
    y, square, sums = np.ones((volumes, BLOCK), F), np.empty((volumes, BLOCK), F), np.empty((6, BLOCK), F)
    rows, best = np.zeros((ROWS, BLOCK), F), np.zeros((ROWS, BLOCK), F)
    watson, watson_slope = np.empty((terms, BLOCK), F), np.empty((terms, BLOCK), F)
    values, slopes = np.empty(terms, F), np.empty(terms, F)
    matrix, step = np.empty((PAIRS, BLOCK), F), np.empty((UNKNOWNS, BLOCK), F)
    inverse, held = np.empty((UNKNOWNS, BLOCK), F), np.empty((UNKNOWNS, BLOCK), F)
    scaled, damping, bits = np.empty(BLOCK, F), np.empty(BLOCK, F), np.empty(BLOCK, np.int32)
    near_far, scale = np.empty((6, BLOCK), F), np.zeros(voxels, F)
    state, taken, steps = np.ones(BLOCK, np.int64), np.full(BLOCK, -1), np.zeros(BLOCK, np.int64)

    for start in range(0, voxels, BLOCK):
        width = min(BLOCK, voxels - start)
        for n in range(volumes):
            for v in range(width):
                scale[start + v] = max(scale[start + v], signal[n, start + v])
        for n in range(volumes):
            for v in range(width):
                y[n, v] = signal[order[n], start + v] / scale[start + v]
        rows[MX : MZ + 1, :width] = theta[:3, start : start + width]
        first_guess(y, rows[MX : MZ + 1], b, bvecs, ends, free, fans, fan_series, square, scaled, sums, rows[:4])
        theta[3:, start : start + width] = rows[:4, :width]

    following, working = 0, 0
    for v in range(BLOCK):
        rows[: MZ + 1, v] = HALF
    while following < voxels or working > 0:
        for v in range(BLOCK):
            if not state[v] and steps[v] < max_iterations:
                continue
            if taken[v] >= 0:
                done[taken[v]] = state[v] == 1
                residual[taken[v]] = np.sqrt(best[LEFT, v] / F(volumes)) / best[S0, v]
                for i in range(3):
                    theta[i, taken[v]] = best[MX + i, v]
                    theta[3 + i, taken[v]] = best[NDI + i, v]
                theta[6, taken[v]] = np.log(best[S0, v] * scale[taken[v]])
                taken[v] = -1
                working -= 1
            # voxels without a signal are passed over
            while following < voxels and not ZERO < scale[following] < F(1e30):
                theta[:, following] = ZERO
                done[following] = False
                following += 1
            if following < voxels:
                for n in range(volumes):
                    y[n, v] = signal[order[n], following] / scale[following]
                for i in range(3):
                    rows[MX + i, v] = theta[i, following]
                for i in range(4):
                    rows[NDI + i, v] = theta[3 + i, following]
                # off the bounds, where nothing pulls
                rows[FWF, v] = min(max(rows[FWF, v], low[2] + LEAST), high[2] - LEAST)
                variance = (sigma / scale[following]) ** 2
                rows[VARIANCE, v], rows[PRECISION, v] = variance, ONE / max(variance, TINY)
                best[COST, v], damping[v], steps[v] = F(np.inf), FIRST_DAMPING, 0
                taken[v] = following
                following += 1
                working += 1
        if not working:
            break
        evaluate(y, b, bvecs, ends, free, series, table, parallel, floor, watson, watson_slope, values, slopes, rows)
        add_prior(rows, prior, near_far, bits)
        accept(rows, best, damping, tolerance, state)
        propose(rows, best, damping, low, high, matrix, step, inverse, scaled, held, state)
        steps += 1
