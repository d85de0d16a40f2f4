// Size, voxel size and unit of every TIFF of a folder; says which cannot be registered as they are.

#@ File (label="Folder of TIFF stacks", style="directory") folder

setBatchMode(true);
wrong = 0;
files = getFileList(folder);
for (i = 0; i < files.length; i++) {
    lower = toLowerCase(files[i]);
    if (!endsWith(lower, ".tif") && !endsWith(lower, ".tiff")) continue;
    open(folder + File.separator + files[i]);
    wrong = wrong + faults(files[i]);
    close();
}
return "" + wrong;

function faults(name) {
    getDimensions(width, height, channels, slices, frames);
    getVoxelSize(pixelWidth, pixelHeight, pixelDepth, unit);
    said = name + ": " + width + " x " + height + " x " + slices + ", " + channels + " channels, " +
        d2s(pixelWidth, 6) + " x " + d2s(pixelHeight, 6) + " x " + d2s(pixelDepth, 6) + " " + unit;
    fault = "";
    factor = nmPer(unit);
    sizes = newArray(pixelDepth * factor, pixelHeight * factor, pixelWidth * factor);
    if (factor == 0) fault = "no voxel size in nm or um: set it with Image > Properties";
    else if (slices == 1) fault = "one slice: not a volume";
    else if (frames > 1) fault = "several time points: split them";
    else if (implausible(sizes)) fault = "no microscope has such voxels: is the unit right?";
    else if (wasCut(newArray(slices, height, width), sizes)) fault = "cropped or scaled since clemreg noted its origin";
    if (fault == "") {
        print("ok    " + said);
        return 0;
    }
    print("WRONG " + said + " - " + fault);
    return 1;
}

// Nanometres in a unit, as clemreg reads it; 0 if it is no length.
function nmPer(unit) {
    unit = toLowerCase(String.trim(unit));
    unit = replace(replace(unit, fromCharCode(181), "u"), fromCharCode(956), "u");
    if (unit == fromCharCode(229) || unit == "angstrom") return 0.1;
    if (unit == "pm" || unit == "picometer") return 0.001;
    if (unit == "nm" || matches(unit, "nanomet(er|re|ers)")) return 1;
    if (unit == "um" || matches(unit, "microns?") || matches(unit, "micromet(er|re|ers)")) return 1000;
    if (unit == "mm" || unit == "millimeter") return 1000000;
    if (unit == "cm" || unit == "centimeter") return 10000000;
    if (unit == "m" || unit == "meter") return 1000000000;
    if (matches(unit, "inch(es)?")) return 25400000;
    return 0;
}

function implausible(sizes) {
    Array.getStatistics(sizes, low, high);
    if (low < 0.3 || high > 50000 || high > 30 * low) return true;
    return false;
}

// Whether the voxels are not those for which clemreg noted an origin: z, y, x @ sizes in nm.
function wasCut(shape, sizes) {
    noted = split(replace(getInfo("clemreg-origin-of"), "@", " "), " ");
    if (noted.length != 6) return false;
    for (j = 0; j < 3; j++) {
        if (parseInt(noted[j]) != shape[j]) return true;
        if (abs(sizes[j] / parseFloat(noted[j + 3]) - 1) > 0.001) return true;
    }
    return false;
}
