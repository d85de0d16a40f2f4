// Brings every TIFF of a folder through one transform, onto the grid of one image.

#@ File (label="Transform (clemreg, elastix, ITK, BigWarp)") transform
#@ File (label="Folder of TIFF stacks", style="directory") input
#@ File (label="Image that gives the grid") onto
#@ File (label="Folder for the results", style="directory") output
#@ Boolean (label="From light to EM", value=false) inverse
#@ Boolean (label="Replace results that are there", value=false) overwrite
#@ String (label="Python with clemreg (empty: as set up)", required=false, value="") python

if (File.getParent(input + File.separator + "x") == File.getParent(output + File.separator + "x"))
    exit("Choose another folder for the results: they would replace the stacks themselves.");
python = interpreter(python);
done = 0;
files = getFileList(input);
for (i = 0; i < files.length; i++) {
    subject = input + File.separator + files[i];
    result = output + File.separator + files[i];
    if (!endsWith(toLowerCase(subject), ".tif") && !endsWith(toLowerCase(subject), ".tiff")) continue;
    if (File.exists(result) && !overwrite) {
        print("there already: " + result);
        continue;
    }
    showProgress(i, files.length);
    showStatus(files[i]);
    // exec() with several arguments starts no shell, so paths need no quoting. The module prints
    // errors too, and the exit code last, which exec() itself would drop.
    // --overwrite: a result that is there is only reached if you asked for it above.
    if (inverse)
        said = exec(python, "-m", "clemreg.cli.merged", "apply", transform, subject, "--onto", onto, "--out", result, "--overwrite", "--inverse");
    else
        said = exec(python, "-m", "clemreg.cli.merged", "apply", transform, subject, "--onto", onto, "--out", result, "--overwrite");
    if (!endsWith(String.trim(said), "EXIT 0")) exit(subject + ": " + said);
    print("wrote " + result);
    done++;
}
return "" + done;

function interpreter(place) {
    if (place == "") place = call("ij.Prefs.get", "clemreg.python", "");
    if (place == "") exit("No Python is set up: Plugins > CLEMReg > Setup and Doctor");
    if (!File.isDirectory(place)) return place;
    inside = newArray("bin/python", "bin/python3", "python.exe", "Scripts/python.exe");
    for (j = 0; j < inside.length; j++) {
        if (File.exists(place + File.separator + inside[j])) return place + File.separator + inside[j];
    }
    exit("There is no Python at " + place);
}
