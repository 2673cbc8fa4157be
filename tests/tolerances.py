"""Tolerances of the suite with their reasons; tests define none themselves."""

from __future__ import annotations

PARITY_RELATIVE = 1e-4
"""Of the tensor's largest magnitude, between two float32 computations of one network: the bound of
the golden cases. The same weights in torch differ by 5e-6: only the summation order changes."""

WARP_VERSUS_FLOAT64 = 1e-5
"""Golden advice for float32; cv2.remap of OpenCV 5 is at 2e-6 (OpenCV 4 would be at 2e-2)."""

FLOAT32_RESIZE = 2e-6
"""A few float32 roundings of bilinear weights on values of magnitude 1."""

NORMALISED_RGB = 2e-5
"""(v/255 - mean)/std as one multiply-add in float32, at magnitudes up to 3, resized on 0..255."""

PROBS_SUM = 1e-6
"""K additions of float32 values that sum to 1, K at most 8."""

WARP_ABSOLUTE = 1e-5
"""Of values in 0..1 sampled at float32 coordinates, against float64: 2e-6 measured at a width of
64, growing with the width since the coordinate's rounding does."""

CORRELATION_ABSOLUTE = 1e-5
"""Mean of up to 256 products of unit-normal float32 values, against float64; 2e-7 measured."""

HALF_FLOW_RELATIVE = 2e-2
"""Of the flow's largest magnitude, half-precision layers against float32 ones in a whole FlowNet 2
of random weights: 11 bits a layer, four networks deep, each warping by the flow of the last."""

CODEC_MEAN_LEVEL = 3.0
"""Of 0..255, mean colour of a plain frame through RGB -> YUV 4:2:0 -> RGB: two roundings to 8 bits
and the encoder's own; 2 measured. Decoding with the wrong colour matrix is off by 10 and more."""

MEASURE_ABSOLUTE = 1e-9
"""J and F are ratios of integer counts: the golden cases require this, and exact equality is what
is measured; 1e-9 leaves room for the order of a mean."""

FLOAT16_PROB = 2.5e-4
"""Half a step of float16 just below 1 is 2.44e-4."""

PASTED_IOU = 0.9
"""A mask that went through crop, resize and paste may lose half a pixel of border a side: 21 x 21
of a square of 22 x 22 is 0.91. A mask left behind by one step of 4 px would be at 0.69."""

RESIZED_IOU = 0.88
"""A 40 px object worked on at a third of its size: up to one working pixel of border, 3 of 40."""

DIS_FLOW_PX = 0.35
"""Median error of DIS on a smooth texture that moves by 2.8 px; its presets end at half or quarter
size, and scale 0.5 halves that again. A flow of the wrong sign would be off by 5 px."""

TRACKED_IOU_MIN = 0.8
"""Overlap with the truth after 11 frames of a one-pixel pan, mask warped by DIS flow of a video
codec's picture and nothing else; 0.85 measured for the worse object (0.46 if left in place)."""

BATCH_NORM_FOLDING_RELATIVE = 1e-5
"""Of the output's largest magnitude: folding rounds each weight once more, on 50 layers in a row;
1e-6 measured."""

RENDERED_SPECTRUM_SLOPE = 0.3
"""About the exponent -1 of a natural image's amplitude spectrum, fitted between 4 and 16 cycles a
picture; edges and the lens steepen it to -1.1 to -1.2, as in photographs. White noise has 0."""

MOTION_SLACK_PX = 1.0
"""Contours on a pixel grid: each of two masks is off by up to half a pixel."""

CLIP_PSNR_DB = 30.0
"""H.264 at CRF 12 with halved colours, against what was rendered, noise and saturated edges
included; 35 measured. The same frame four pixels aside is at 18."""

CRF_MEAN_ABSOLUTE = 5e-3
"""Golden advice for mean |dQ| against pydensecrf; 2e-4 measured. Lattices differ where float32
rounding puts a point in another simplex, and our spatial kernel is exact."""

CRF_ARGMAX_AGREEMENT = 0.995
"""Golden advice, share of the pixels; 0.9998 measured."""

LOSS_RELATIVE = 1e-5
"""A float32 loss against the same formula in float64: a few dozen roundings of terms of one sign;
1e-7 measured."""

OPTIMISER_RELATIVE = 1e-5
"""Of the larger of a tensor's magnitude and its move: the same float32 update with its operations
in another order; 1e-7 measured."""

CRF_VERSUS_FLOAT64 = 2e-5
"""dQ of small pictures against mean field in float64: all pairs are summed in float32, and the
weights of up to 10 amplify a difference at each of up to 10 updates; 1e-6 measured."""

LATTICE_VERSUS_PLAIN = 2e-4
"""Sums of up to 80 values of 0..1 at float32 coordinates of up to 50 cells, against float64."""

LATTICE_MEAN_RELATIVE = 0.2
"""Of the filtered values' standard deviation: how far the lattice is from a Gaussian; 0.10 to 0.13
measured. A Gaussian half as wide again, or narrower by a third, is at 0.4 and more."""

EAGER_PROB = 1e-3
"""Probabilities of our pipeline and of the one in eager PyTorch after some frames: the same sums in
another order, 3e-5 measured; softmax amplifies that where it is steep."""

GRID_SAMPLE_WARP = 5e-5
"""Of values in 0..1: grid_sample scales coordinates to -1..1 and back, 3e-5 measured at 854 px."""

KERNEL_VERSUS_FLOAT64 = 2e-6
"""Weighted means of values of 0..2 in float32 with weights from float32 exponents of up to 80; 4e-7
measured."""

LATTICE_MEAN_MESSAGE = 0.022
"""Mean difference of a lattice's messages of 0..2 from those of all pairs; 0.011 to 0.018 measured,
0.027 and more with half or twice the deviation in colour."""

INPAINTED_LEVELS = 20
"""Of 0..255, mean colour of a hole filled from its surroundings against the mean of those: a
texture of +-60 levels around it; 9 measured. The object is 90 away."""

COARSE_GRID_PX = 2e-3
"""Positions of up to 100 px kept in float32 on a grid and interpolated linearly; 1e-4 measured."""

KERNEL_VERSUS_REFERENCE = 5e-7
"""Of values in 0..1: a CUDA kernel and its NumPy reference do the same float32 operations in the
same order. Most results are equal bit for bit. exp and log are of different libraries. 1.2e-7
measured."""

TARGET_SCORE = 5e-6
"""Sigmoid of a float32 sum of up to some hundred terms, against a matrix product that adds in
another order: a quarter of the difference of the logits. 1.4e-6 measured with 21 terms."""

KERNEL_NORMALISED = 1e-6
"""KERNEL_VERSUS_REFERENCE of RGB normalised to magnitudes of up to 3; 1.2e-7 measured."""

KERNEL_HALF_RELATIVE = 1e-3
"""Of the largest magnitude: where two float32 results straddle the middle between two values of
float16, these differ by one step, 2^-10."""

KERNEL_RESIZE = 1e-6
"""Of values in 0..1, against cv2.resize: the same positions, the four weights in another order;
1.2e-7 measured, at 8 px and at 854."""

FLOW_RESIZE_PX = 1e-5
"""KERNEL_RESIZE for flows of up to 10 px; 3e-6 measured."""

KERNEL_CONFIDENCE = 1e-7
"""A mean of probabilities summed in steps of 2^-24, each off by half a step at most."""

KERNEL_SUM_RELATIVE = 2e-6
"""Of a sum of some hundred positive float32 terms, added row by row against a matrix product."""

KERNEL_LOG = 5e-6
"""Of -log p up to 11.5: two libraries' logarithms of p, one unit in the last place (9.5e-7) each,
and of a background that is 1 less a sum."""

KERNEL_LATTICE_RELATIVE = 5e-6
"""Of the largest filtered value: the same lattice, its sums in fixed point of 2^-40 instead of
float32; 3e-7 measured."""

KERNEL_CRF = 2e-5
"""dQ between device and CPU on the same kernels: as CRF_VERSUS_FLOAT64; 7e-6 measured."""

KERNEL_CHAIN = 1e-5
"""Probabilities after four frames of warp, evidence, crop, paste and merge, against the CPU: as
WARP_VERSUS_FLOAT64; each frame starts from the last, 7e-7 measured after four."""

FINITE_DIFFERENCE = 2e-4
"""Of the largest gradient of a tensor: central differences of float32 sums of up to a few hundred
terms over a step of 1/64; 2e-5 measured. A rule with the wrong sign is off by 2."""

LOSS_RELATIVE = 2e-6
"""A few float32 roundings in other orders."""

UPDATES_RELATIVE = 1e-5
"""Twelve float32 updates of each value; 1e-6 measured. A momentum of 0 instead of 0.9 is off by 1,
a weight decay that is missing by 2e-4."""

HALF_STEP = 2.0**-10
"""Relative: half precision has 10 bits after the first."""

HALF_STEP_OF_SCALED = 2.0**-18
"""Half's smallest step, 2^-24, times the 64 by which the trunk of OSVOS is scaled down."""

ADAPT_WEIGHT_RELATIVE = {"sgd": 3e-3, "adamw": 0.2}
"""Of a tensor's largest weight after 20 steps of fine-tuning in onnxruntime and in torch, and of
the loss: 7e-4 measured, 1e-7 after the first step; training amplifies what rounding began. AdamW
takes the sign of each gradient first, and the order of summation turns the smallest ones."""

ADAPT_PROB = {"sgd": 1e-3, "adamw": 0.2}
"""Of the probability that those weights give."""

SYNTHETIC_FLOW_LEVELS = 6.0
"""Median of |frame 0 - frame 1 sampled along the true flow| in levels of 0..255: both frames are
interpolated from the same texture at other places, which blurs it differently."""

DEVICE_PROB = 3e-5
"""Probabilities of a pipeline on the device against the host's, after a dozen frames; 4.2e-7
measured where nothing amplifies, 7e-6 with a network that does. CRF multiplies it by 100:
KERNEL_CRF of one frame, fed back."""

DEVICE_CONFIDENCE = 1e-5
"""Mean probability over an object, of the same."""

DEVICE_RELIABILITY = 4 * DEVICE_CONFIDENCE + DEVICE_PROB
"""Of the same labels: the confidence to the power of 4, times a mean of scores."""

JOINED_GRADIENT_RELATIVE = 1e-4
"""Of a tensor's largest gradient: the mean over two processes of the means over half a batch,
against the mean over the whole: float32 sums in another order. Half a batch alone is off by more
than 1e-1."""

JOINED_WEIGHT_OF_STEP = 1e-2
"""Mean difference of weights over what AdamW's steps move them: it takes the sign of the smallest
gradients, which rounding turns here and there."""

PLAN_HALF_INPUT_ABS = 2e-3
"""Probabilities of half networks, which onnxruntime computes in float32 on a CPU and fuses
otherwise if an input is half already: they differ by some half steps (5e-4)."""

DEVICE_IOU_MEAN, DEVICE_IOU_WORST, DEVICE_SMALL_AREA_PX = 0.995, 0.98, 400
"""Masks of the device against the host's over 60 frames: the project's requirement for a GPU.
Smaller objects are excluded, because one pixel is a large part of them. 1.0 measured through the
shim, with one object and with three."""

PRORES_LEVELS = 0.5
"""Mean absolute error of the RGB levels of ProRes 4444 (measured: 0.08, largest 1, on a smooth
random texture). The next frame of its pan differs by 8."""

MATTE_LEVELS = 1.5
"""Largest error of a matte in ProRes 422 HQ, of 255 levels (measured: 1.2 on masks of DAVIS)."""
