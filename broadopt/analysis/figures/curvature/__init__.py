"""Figures of the loss close to trained weights: spectra of Hessians, sharpness, perturbations."""
