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
    if (unit == "pixel" || unit == "pixels" || unit == "") fault = "no voxel size: set it with Image > Properties";
    else if (slices == 1) fault = "one slice: not a volume";
    else if (frames > 1) fault = "several time points: split them";
    if (fault == "") {
        print("ok    " + said);
        return 0;
    }
    print("WRONG " + said + " - " + fault);
    return 1;
}
