//! `/v1/images`: registered images, and taking image files of this host into its store.
